"""The schema of configs/*.json, reading them, and the sentences that say what is wrong with one."""
