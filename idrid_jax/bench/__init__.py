"""Speed measurements: each compares two or more sides in interleaved rounds of the same process."""
