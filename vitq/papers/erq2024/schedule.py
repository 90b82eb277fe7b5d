"""Order in which Wqer quantizes the columns of a weight: half of what is open, then half of the rest."""


def half_sizes(inputs: int, bias: bool = True) -> list[int]:
    """Columns quantized in each round; they add up to ``inputs`` (ERQ 2024, section 3.2 of the specification).

    The bias is an open column that stays last and is never quantized, so that it takes the last correction. Without a
    bias the last column alone is a round of its own (section 9.4): nothing is left to correct it.

    Args:
        inputs: Input columns I.
        bias: Whether the layer has one.
    """
    open_columns, sizes = inputs + int(bias), []
    while open_columns > 1:
        sizes.append(open_columns // 2)
        open_columns -= open_columns // 2
    return sizes if bias else [*sizes, 1]
