# Chores, each one command. `make help` lists them.

# Where rustup puts cargo, for a shell that has not read its profile since.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help demo test bench check services stop clean toolchain

help: ## list these chores
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: toolchain ## open a merchant's dashboard with buttons to play with
	@scripts/demo

test: toolchain ## run every check and test, against a private RabbitMQ and Postgres
	@scripts/test

bench: toolchain ## measure throughput, latency, replay, idle sessions and scale (15 minutes; BENCH="--help" for less)
	@cargo bench --locked --bench load -- $(BENCH)

check: toolchain ## format and lints only, without services
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings

services: ## start the private RabbitMQ and Postgres (installed if missing), print their URLs
	@scripts/services up

stop: ## stop them; their data stays until make clean
	@scripts/services down

clean: ## stop them, and delete their data and everything that was built
	@scripts/services down --purge
	rm -rf .demo target

toolchain:
	@scripts/toolchain
