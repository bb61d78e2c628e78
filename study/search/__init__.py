"""What is tried: the ledger, the queue of packs, successive halving. No Ray and no tensors in here."""
