"""What a run reads, on all ranks: open sources, the tokenizer, batches, the validation set, adaptive source weights."""
