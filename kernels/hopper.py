"""Numbers of a Hopper GPU (sm_90: H100, H200) that its kernels and their layouts are made for."""

SMEM = 232_448  # bytes of shared memory that a block may take
MULTIPROCESSORS = 132
ROWS = 64  # of a product: what the tensor cores take from one warpgroup of 128 threads
COLUMNS = 256  # of a product, at most; also elements of a copy along an axis
ALIGNED = 128  # bytes: where a copy to or from shared memory may begin
