# `make demo` and `make test` install what is missing, build and run; `make nano` trains the demo's model from nothing. The rest is for
# people who work on viscache.
# Every cargo call goes through scripts/cargo.sh, which supplies the RocksDB library that is built once per machine.

CARGO := scripts/cargo.sh
# Tests end these programs at named steps, when told so through the environment. With the same features nothing is compiled twice.
STEPS := --features index-builder/failpoints

.PHONY: demo test nano lint doc release setup

demo: setup
	@echo '== 2 of 4: RocksDB (once for this machine; 4 minutes on two cores)'
	@scripts/rocksdb.sh >/dev/null
	@echo '== 3 of 4: the programs (6 minutes on two cores; seconds when nothing has changed)'
	$(CARGO) build --locked --workspace $(STEPS) --bins --examples
	@echo '== 4 of 4: the demo (a minute the first time, then seconds)'
	@$${CARGO_TARGET_DIR:-target}/debug/examples/demo

test: setup
	@scripts/setup.sh ffmpeg tesseract=tesseract-ocr
	$(CARGO) test --locked --workspace $(STEPS)

nano: setup
	@scripts/setup.sh espeak-ng
	$(CARGO) build --locked --workspace $(STEPS) --bins --examples
	@scripts/nano.sh

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

release: setup
	$(CARGO) build --locked --workspace --release

setup:
	@echo '== 1 of 4: what this machine needs'
	@scripts/setup.sh
