import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, clip, harmless, money } from "../src/format.js";

test("money keeps every digit of the decimal string", () => {
  assert.equal(money("129.90", "EUR", "en"), "€129.90");
  assert.equal(
    money("12345678901234567890.123456", "EUR", "en"),
    "€12,345,678,901,234,567,890.123456",
  );
  assert.equal(money("9007199254740993", "JPY", "en"), "¥9,007,199,254,740,993");
  assert.equal(money("1500.5", "JPY", "en"), "¥1,500.5");
  assert.equal(money("-0.50", "USD", "en"), "-$0.50");
  assert.equal(money("0.1", "EUR", "de").replace("\u00a0", " "), "0,10 €");
});

test("invalid money is shown unchanged", () => {
  assert.equal(money("1e3", "EUR", "en"), "1e3 EUR");
  assert.equal(money("12", "not a currency", "en"), "12 not a currency");
  assert.ok(money("9".repeat(10_000), "EUR", "en").length < 100);
});

test("control and bidirectional characters become visible", () => {
  assert.equal(harmless("a\u0000b\u0007c\u007f"), "a␀b␇c␡");
  assert.equal(harmless("\u202Egpj.exe"), "\ufffdgpj.exe");
  assert.equal(harmless("two\nlines\tand a tab"), "two lines and a tab");
  assert.equal(harmless("طلب رقم 123 👩‍🍳"), "طلب رقم 123 👩‍🍳");
});

test("long text is cut between characters", () => {
  assert.equal(clip("x".repeat(200), 10), `${"x".repeat(10)}…`);
  assert.equal(clip("🔔".repeat(10), 3), "🔔…");
});

test("recent times are relative", () => {
  const now = Date.parse("2026-11-21T12:00:00Z");
  assert.equal(ago(now + 5_000, now), "just now");
  assert.equal(ago(now - 59_000, now), "just now");
  assert.equal(ago(now - 4 * 60_000, now), "4 min. ago");
  assert.equal(ago(now - 3 * 86_400_000, now), "3 days ago");
});
