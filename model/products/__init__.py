"""Matrix products in fp32 on a CPU that multiplies no bf16: by torch, or by a kernel of our own."""
