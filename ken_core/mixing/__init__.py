"""One forward pass for rows of many tasks: the base for all rows, corrected where a row's own delta differs.

The arena holds the base throughout. Each module that some delta changes computes the base's result for all rows at once
and adds, to the rows of each task, what that task's delta changes (PetS, Zhou et al., USENIX ATC 2022, for sparse
deltas; S-LoRA, Sheng et al., MLSys 2024, for low-rank ones).
"""
