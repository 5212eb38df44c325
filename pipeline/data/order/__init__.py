"""Which sample comes when: a closed form of the seed and the position."""
