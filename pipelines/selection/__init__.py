"""Which paths become training examples, and why the others do not."""
