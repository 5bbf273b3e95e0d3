# Each target is a script in hack/, which says what it does and how long it took.
# E2E_CLUSTER=existing IMAGE_REGISTRY=host/path: on the cluster of the current context instead of one of our own.

.PHONY: help demo test check generate images cluster cluster-down install bench

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

demo: ## a session from nothing: cluster, images, chart, quickstart
	@hack/demo

test: ## everything that .ci/run runs
	@hack/test

check: ## format, lints, generated files, scripts, chart
	@hack/check

generate: ## crds/yaml and the chart's copy of it
	@hack/generate

images: ## all images, into the cluster's nodes or $IMAGE_REGISTRY
	@hack/bootstrap && images/build

cluster: ## a Kubernetes cluster on this machine (NODES=2 for two nodes)
	@hack/cluster

install: ## cluster, images, chart
	@hack/cluster install

cluster-down: ## takes the cluster away
	@hack/cluster-down

bench: ## target/bench/*.json and docs/benchmarks.md (BENCH=name for one)
	@hack/bench
