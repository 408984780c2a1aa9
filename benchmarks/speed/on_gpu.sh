#!/usr/bin/env bash
# Measure a GPU that is lent for minutes. The machine has torch, but no network and none of our other packages.
#
#   bash benchmarks/speed/on_gpu.sh --out FOLDER [--wheels FOLDER] [--seconds 290] [--small] [--only step,adapt]
#
# --wheels: folder of wheels. They are installed beside the machine's own packages and replace none. Fill it before, where there
# is a network: `bash benchmarks/speed/on_gpu.sh --fetch FOLDER` downloads them for Python 3.12 on Linux x86-64 and prints their
# size. Such a machine accepts 64 MiB, the repository included.
# The same --out resumes a stopped run: each figure is written as soon as it is measured.
# Training is separate: python benchmarks/train_prior.py train --blocks 64,96,128 --seconds 360 --batch 64 ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# What on_gpu.py and the tests marked gpu import and a machine with torch, Lightning, peft, timm and scikit-image lacks.
PACKAGES=(diffusers importlib-metadata deepinv natsort hydra-core omegaconf antlr4-python3-runtime pydantic pydantic-core annotated-types
	typing-inspection)
MOST_MIB=64

most_seconds=290 wheels="" passed_on=()
while [ $# -gt 0 ]; do
	case "$1" in
	--wheels) wheels="$2"; shift 2 ;;
	--seconds) most_seconds="$2"; shift 2 ;;
	--fetch)
		mkdir -p "$2"
		for name in "${PACKAGES[@]}"; do
			pin="$(grep -i "^${name//-/[-_]}==" constraints.txt)" || { echo "constraints.txt has no $name" >&2; exit 1; }
			if [ "$name" = antlr4-python3-runtime ]; then # its registry has no wheel; it is Python alone
				python3 -m pip wheel --quiet --no-deps -w "$2" "$pin"
				continue
			fi
			python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
				--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$2" "$pin"
		done
		repository=$(git ls-files -z | xargs -0 du -ck | tail -n 1 | cut -f 1)
		both=$(((repository + $(du -sk "$2" | cut -f 1) + 1023) / 1024))
		echo "$2 and the repository: $both MiB of $MOST_MIB"
		[ "$both" -le "$MOST_MIB" ]
		exit ;;
	*) passed_on+=("$1"); shift ;;
	esac
done

if [ -n "$wheels" ]; then
	site="$(mktemp -d)"
	python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
	export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# The limit leaves time to bring the figures home; what it cuts off is measured by the next call.
status=0
timeout "$most_seconds" python3 benchmarks/speed/on_gpu.py "${passed_on[@]}" || status=$?
[ "$status" != 124 ] || echo "Stopped after $most_seconds s; the same command goes on."
exit "$status"
