"""Many runs at once: each combination of swept values, its folder, and one table of all of them."""
