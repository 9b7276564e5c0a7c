"""Standard streams: FIFOs, terminals and log drivers, and who copies between them."""
