"""What is random beside the steps, each a number to fold into the key of a seed: steps are below 2**31."""

INIT, ORDER, GRID, MEASURED = (2**31 + number for number in range(4))
