"""structprune keeps the most valuable structures of a network that fit a budget and proves how good the choice is."""
