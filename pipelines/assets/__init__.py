"""The assets of a task, from its examples to its published prompt. Each is a caption over prompt_core."""
