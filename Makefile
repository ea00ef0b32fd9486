# `make demo` and `make test` install what is missing, build and run. The rest is for people who work on viscache.
# Every cargo call goes through scripts/cargo.sh, which supplies the RocksDB library that is built once per machine.

CARGO := scripts/cargo.sh

.PHONY: demo test lint doc release setup

demo: setup
	$(CARGO) build --locked --workspace --bins --examples
	$(CARGO) run --locked --quiet --example demo

test: setup
	@scripts/setup.sh ffmpeg tesseract=tesseract-ocr
	$(CARGO) test --locked --workspace
	$(CARGO) test --locked -p index-builder --features failpoints --test crash
	$(CARGO) test --locked -p viscache --features failpoints --test crash_living

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

release: setup
	$(CARGO) build --locked --workspace --release

setup:
	@scripts/setup.sh
