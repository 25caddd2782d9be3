"""One worker over several hosts: rank 0 serves as ever and tells the others each call of its device, which they follow."""
