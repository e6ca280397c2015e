#!/usr/bin/env bash
# Pins requirements*.txt with hashes, for every platform and Python the project supports.
set -euo pipefail
cd "$(dirname "$0")"
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install --quiet uv
unset PIP_FIND_LINKS UV_FIND_LINKS
compile() {
  "$tool/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$@"
}
compile pyproject.toml --extra postgres --extra otel --output-file requirements.txt
compile --group build --output-file requirements-build.txt
compile pyproject.toml --group dev --constraint requirements.txt --output-file requirements-dev.txt
# mypyc has to see the dependencies as well: what the compiled modules import decides what is made of them.
compile pyproject.toml --group compile --constraint requirements-dev.txt --output-file requirements-compile.txt
compile --group sbom --output-file requirements-sbom.txt
compile tests/wheels/requirements.in --output-file tests/wheels/requirements.txt
