"""The names of snapshots in a checkpoint folder, the newest generation first."""

CURRENT, PREV, PREV2 = "lm_current.pth", "lm_prev.pth", "lm_prev2.pth"
MIRROR = "simple_lm_trained.pth"
GENERATIONS = (CURRENT, PREV, PREV2)
NAMES = (*GENERATIONS, MIRROR)
