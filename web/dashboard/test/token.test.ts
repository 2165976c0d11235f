import assert from "node:assert/strict";
import { test } from "node:test";
import { asToken, claims, fragmentOf, readAddress, samePath } from "../src/token.js";

test("the token is read from the fragment and removed from it", () => {
  const address = readAddress("?x=1", "#token=a.b.c&demo");
  assert.deepEqual(address, {
    token: "a.b.c",
    tokenUrl: undefined,
    demo: true,
    reason: undefined,
    fragment: "#demo",
  });
  assert.equal(readAddress("", "#token=a.b.c").fragment, "");
  assert.equal(readAddress("?token=a.b.c", "").token, undefined);
});

test("without storage the fragment carries the reason as a code", () => {
  for (const demo of [true, false]) {
    const refused = readAddress("?token-url=/t", fragmentOf({ demo, reason: "refused" }));
    assert.deepEqual(
      [refused.reason, refused.demo, refused.token, refused.fragment],
      ["refused", demo, undefined, demo ? "#demo" : ""],
    );
    const pasted = readAddress("", fragmentOf({ demo, token: "a-_.b.c" }));
    assert.deepEqual([pasted.token, pasted.reason], ["a-_.b.c", undefined]);
  }
  assert.equal(readAddress("", "#reason=Call+0900+for+a+token").reason, undefined);
});

test("the token URL is a path of this host", () => {
  assert.equal(samePath("/account/token?for=shopbell"), "/account/token?for=shopbell");
  const elsewhere = [
    "//evil.example/t",
    "/\\evil.example",
    "https://evil.example/",
    "token",
    "",
    "/\t/evil.example",
    "javascript:alert(1)",
  ];
  for (const path of elsewhere) assert.equal(samePath(path), undefined, path);
  assert.equal(samePath(null), undefined);
});

test("a pasted token may have a Bearer prefix", () => {
  assert.equal(asToken("  Bearer aa.bb.cc\n"), "aa.bb.cc");
  assert.equal(asToken("hello"), undefined);
  assert.equal(asToken("a.b"), undefined);
});

test("the claims of a token are read as UTF-8", () => {
  const payload = Buffer.from(
    JSON.stringify({ sub: "mérchant-ß", exp: 7, feeds: ["a", 1] }),
  ).toString("base64url");
  assert.deepEqual(claims(`h.${payload}.s`), { sub: "mérchant-ß", exp: 7, feeds: ["a"] });
  assert.deepEqual(claims("nonsense"), {});
});
