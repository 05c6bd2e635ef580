"""What many tests need: archives, receivers, peers, and looking at a tree."""
