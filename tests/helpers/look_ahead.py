"""Presets with the lookahead core."""

PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive", "draft")}

WEIGHTS = {"auxiliary_warmup_fraction": 0.1, "information_gain_weight": 0.1}
ON = {**PARTS, **WEIGHTS, "rollout_depth": 3, "value_horizons": [4, 16]}
