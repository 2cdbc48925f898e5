"""Where text comes from: sources, tokenizers, and the loader that turns them into batches. Knows nothing of models."""
