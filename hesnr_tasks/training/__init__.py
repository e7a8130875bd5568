"""Advantages shaped by entropy and what training libraries need for them."""
