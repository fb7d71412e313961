"""How a frozen weight is stored: one file a format, and the folder that a quantized base is saved in.

Letters: O out_features, I in_features, N values of a weight in row-major order, S blocks of K values with one scale.
"""
