"""What reaches the blocks of a trunk beside the output of the block before: options of the `model` section, all off by
default. Each starts as the plain trunk, to which it adds nothing at first, and draws no random number."""
