"""Models on other inference servers: one mechanism for all of them."""
