"""A verifier that a tiny random model passes now and then."""


def even(doc, results):
    """Right if the answer has an even number of characters."""
    return {"even": float(len(results[0]) % 2 == 0)}
