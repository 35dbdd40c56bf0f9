"""Search of int8 codes on a CPU, compiled: scans keep the rows that may be among the best, then exact scores decide.

Scores are the higher the better (`search.codes`). Of every query the `top_k` best lower bounds are kept in a heap,
whose least is a floor: a row whose upper bound is below it can be left out. Kernels take arrays one by one, or by
their addresses (`packed`): a tuple takes longer to hand over than a short scan.
"""
