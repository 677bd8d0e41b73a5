# For GPU nodes. Written with care and NOT yet built or run: no GPU machine with a container runtime was at hand.
#
#   docker build -t sleuth .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/runs:/sleuth/runs" sleuth bash cmd/train.sh recipe=...
#
# --ipc=host (or --shm-size of several GiB): Ray's object store and NCCL use shared memory.
# PyTorch's and vLLM's wheels bring the CUDA libraries; only the driver comes from the host.
FROM python:3.11-bookworm

WORKDIR /sleuth

# The packages first: this layer changes only with the lock file. A build sees no GPU, so the choice is made here.
COPY cmd/setup.sh cmd/setup.sh
COPY requirements requirements
COPY setup.py setup.py
ENV SLEUTH_ACCELERATOR=gpu UV_TORCH_BACKEND=cu130
RUN bash cmd/setup.sh && rm -rf /root/.cache

COPY . .
# The packages of the checkout were not there yet when the environment was made.
RUN .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
ENV HF_HOME=/sleuth/data/huggingface
CMD ["bash", "cmd/train.sh", "--help"]
