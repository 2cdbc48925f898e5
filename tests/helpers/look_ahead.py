"""Presets with the lookahead core."""

PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive", "draft")}

ON = {**PARTS, "auxiliary_warmup_fraction": 0.1, "rollout_depth": 3, "value_horizons": [4, 16]}
