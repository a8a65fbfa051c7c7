# The image for Cloud TPUs. Build it in the repository, push it, and give its name to `afloc render`:
#
#     docker build --file deploy/docker/tpu.Dockerfile --tag REGISTRY/afloc_jax:tpu .
#
# libtpu comes with JAX, as a wheel, which is all that a host needs.
FROM python:3.12-slim

WORKDIR /afloc_jax
COPY requirements.txt requirements-gcs.txt requirements-tpu.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-gcs.txt -r requirements-tpu.txt

COPY pyproject.toml hatch_build.py requirements*.txt README.md LICENSE launch.py ./
COPY afloc_jax afloc_jax
COPY data_pipelines data_pipelines
COPY configs configs
# The check of a config puts the whole run together: a broken image shows here, where there is no TPU, not on a cluster.
RUN pip install --no-cache-dir --no-deps --editable . \
    && JAX_PLATFORMS=cpu python launch.py --config=configs/demo.py --workdir=/tmp/demo --dry_run

CMD ["python", "launch.py", "--help"]
