# Trains the preset 02_offline_python on CPUs, without a network once it is built:
#
#     docker build -t forethought .
#     docker run -v forethought:/app/checkpoints forethought
#
# `docker stop` saves and stops, the next `docker run` continues. With `docker run -it` there is the menu of all presets.
FROM python:3.11-slim

# A compiler for torch.compile and for the kernel that writes text.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt constraints.txt ./
# uv knows where PyTorch's wheels for CPUs are.
RUN pip install --no-cache-dir uv==0.13.* \
    && uv pip install --system --no-cache --torch-backend=cpu -r requirements.txt -c constraints.txt

COPY main.py storage.py ./
COPY engine engine
COPY model model
COPY sources sources
COPY shard_cache shard_cache
COPY configs configs
COPY examples examples

# What a run writes belongs to a user who may do nothing else.
RUN useradd --create-home --uid 1000 forethought \
    && mkdir -p checkpoints exports shard_cache/store \
    && chown -R forethought checkpoints exports shard_cache/store
USER forethought
ENV PYTHONUNBUFFERED=1
VOLUME /app/checkpoints
STOPSIGNAL SIGTERM

# A terminal gets the menu; elsewhere the answer is that of README.md. `exec`: the signal reaches the run itself.
CMD ["bash", "-c", "if [ -t 0 ]; then exec python main.py; fi; exec python main.py < <(printf '02\\n')"]
