#!/bin/sh
# Makes requirements.txt and requirements-cuda.txt: the packages of the image with their hashes, for Linux and the
# image's Python. Versions in a uv.lock beside pyproject.toml stay as they are; without one, the newest are taken.
set -eu
cd "$(dirname "$0")/.."
infra=$PWD/infra
python=$(sed -n 's/^ARG PYTHON=\([0-9]*\.[0-9]*\).*/\1/p' infra/Dockerfile)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed "s/^requires-python = .*/requires-python = \"==$python.*\"/" pyproject.toml > "$work/pyproject.toml"
printf '\n[tool.uv]\nenvironments = ["sys_platform == '"'linux'"'"]\n' >> "$work/pyproject.toml"
cp README.md "$work"
if [ -f uv.lock ]; then cp uv.lock "$work"; fi
cd "$work"
uv lock --quiet
packages() {
    echo "# Made by infra/lock.sh."
    uv export --quiet --frozen --no-dev --all-extras --no-emit-project --no-annotate --no-header "$@" \
        | sed "s/ ; sys_platform == 'linux' / /"
}
packages --prune torch --prune torchvision > "$infra/requirements.txt"
packages > all.txt
# What torch brings alone: the CPU image has another torch, without CUDA's libraries.
{ echo "# Made by infra/lock.sh."; grep -vxFf "$infra/requirements.txt" all.txt; } > "$infra/requirements-cuda.txt"
