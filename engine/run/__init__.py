"""One run: from a preset to its components, one optimizer step, evaluation, and the loop over them."""
