"""What a finished model learns about writing, from texts that it was not trained on. Its trunk stays as it is."""

from .drafter import DrafterFit, fit_drafter
from .plan import PlanFit, fit_plan
from .temperature import fit_temperature

__all__ = ["DrafterFit", "PlanFit", "fit_drafter", "fit_plan", "fit_temperature"]
