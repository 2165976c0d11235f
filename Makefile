# Chores, each one command. `make help` lists them.

# rustup installs cargo there. A shell that started before does not have it in its PATH.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench docs sbom check services stop clean toolchain

help: ## list these chores
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

demo: toolchain ## serve a merchant's dashboard with buttons that place orders and cut the connection
	@scripts/demo

test: toolchain ## run every check and test with a private RabbitMQ and Postgres (one: scripts/test STEP)
	@scripts/test

chaos: toolchain ## cause random faults under load and check every promise (60 minutes; CHAOS="--help" lists options)
	@scripts/chaos $(CHAOS)

bench: toolchain ## measure throughput, latency, replay, idle sessions and scale (20 minutes; BENCH="--help" lists options)
	@scripts/install nats-server || true
	@cargo bench --locked --bench load -- $(BENCH)

docs: toolchain ## build the documentation as a site: target/docs/html/index.html
	@scripts/docs-site

sbom: toolchain ## write the software bill of materials: target/shopbell.cdx.json
	@mkdir -p target
	scripts/sbom > target/shopbell.cdx.json

check: toolchain ## check format and lints, without services
	@scripts/test format
	@scripts/test lint

services: ## start the private RabbitMQ and Postgres, install them if necessary, print their URLs
	@scripts/services up

stop: ## stop both and keep their data
	@scripts/services down

clean: ## stop both, delete their data and everything that was built
	@scripts/services down --purge
	rm -rf .demo target

toolchain:
	@scripts/install toolchain
