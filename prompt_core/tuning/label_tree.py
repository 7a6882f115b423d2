"""`LabelTree`: what labels are said as, with what several begin with said once."""

from __future__ import annotations

from collections.abc import Sequence


class LabelTree:
    """Token sequences as the tree of their common beginnings (a trie).

    Attributes:
        segments, parents: runs of tokens without a branch, depth first; parent -1 is what stands in front of all. The
            last token of a sequence predicts nothing and has no row.
        num_tokens: of all segments.
        row_of, targets: each prediction: the row that makes it (0 is the last one in front, 1 + i the i-th token of the
            segments) and the token that it is about. What sequences have in common is predicted once.
        members: (prediction, sequence) for every token of every sequence.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.segments: list[Sequence[int]] = []
        self.parents: list[int] = []
        self.num_tokens = 0
        self.row_of: list[int] = []
        self.targets: list[int] = []
        self.members: list[tuple[int, int]] = []
        self._grow([(number, tuple(ids)) for number, ids in enumerate(sequences)], depth=0, parent=-1, row=0)

    def _grow(self, sequences: Sequence[tuple[int, tuple[int, ...]]], depth: int, parent: int, row: int) -> None:
        """Add what comes after the first `depth` tokens, which the sequences share and `row` ends."""
        by_token: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for number, ids in sequences:
            if len(ids) > depth:
                by_token.setdefault(ids[depth], []).append((number, ids))
        for branch in by_token.values():
            self._branch(branch, depth, parent, row)

    def _branch(self, sequences: Sequence[tuple[int, tuple[int, ...]]], depth: int, parent: int, row: int) -> None:
        run: list[int] = []
        while True:
            token = sequences[0][1][depth]
            self.members += [(len(self.targets), number) for number, _ in sequences]
            self.row_of.append(row)
            self.targets.append(token)
            depth += 1
            following = {ids[depth] if len(ids) > depth else None for _, ids in sequences}
            if following == {None}:
                break  # nothing is predicted from here
            run.append(token)
            self.num_tokens += 1
            row = self.num_tokens
            if len(following) > 1:
                break
        if run:
            self.segments.append(run)
            self.parents.append(parent)
        if following != {None}:
            self._grow(sequences, depth, len(self.segments) - 1, row)
