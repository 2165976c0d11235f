// Formats text and numbers of events. Pure.

/** Rows show this many characters of a name; the details show all. */
export const CLIP_CHARS = 160;

// C0 and C1 controls, line and paragraph separators, bidirectional controls, zero-width and tag
// characters.
const HARMFUL =
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** Replaces invisible and reordering characters with visible ones. */
export function harmless(text: string): string {
  return text.replace(HARMFUL, (char) => {
    const code = char.charCodeAt(0);
    if (char === "\n" || char === "\t" || char === "\r") return " ";
    // Unicode's pictures of control characters.
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : "\ufffd";
  });
}

/** One line of harmless text, cut at {@link CLIP_CHARS}. */
export function clip(text: string, chars = CLIP_CHARS): string {
  const short = text.length > chars ? `${text.slice(0, chars)}…` : text;
  // Removes half of a surrogate pair.
  return harmless(short.replace(/[\ud800-\udbff]…$/u, "…"));
}

/** Any value of an event as text. */
export function asText(value: unknown): string {
  if (typeof value === "string") return value;
  return JSON.stringify(value) ?? "";
}

/** A cache, because creating a format is slower than the rest of a row. */
const moneyFormats = new Map<string, Intl.NumberFormat>();
const MONEY_FORMATS_MAX = 100;

function moneyFormat(
  locale: string | undefined,
  currency: string,
  digits: number,
): Intl.NumberFormat {
  const key = `${locale}/${currency}/${digits}`;
  let format = moneyFormats.get(key);
  if (!format) {
    const options: Intl.NumberFormatOptions = { style: "currency", currency };
    const usual =
      new Intl.NumberFormat(locale, options).resolvedOptions().maximumFractionDigits ?? 2;
    format = new Intl.NumberFormat(locale, {
      ...options,
      maximumFractionDigits: Math.max(usual, digits),
    });
    if (moneyFormats.size >= MONEY_FORMATS_MAX) moneyFormats.clear();
    moneyFormats.set(key, format);
  }
  return format;
}

/** Money in the reader's locale, with every digit of the decimal string. */
export function money(total: string, currency: string, locale?: string): string {
  const digits = /^-?\d{1,60}(?:\.(\d{1,60}))?$/.exec(total);
  if (!digits) return clip(`${total} ${currency}`, 60);
  try {
    // A string, because a number is rounded to a double.
    return moneyFormat(locale, currency, digits[1]?.length ?? 0).format(
      total as Intl.StringNumericLiteral,
    );
  } catch {
    return clip(`${total} ${currency}`, 60);
  }
}

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "short" });

/** "4 min. ago"; "just now" below a minute and for future times. */
export function ago(at: number, now: number): string {
  const seconds = (now - at) / 1_000;
  for (const [unit, length] of UNITS) {
    if (seconds >= length) return relative.format(-Math.floor(seconds / length), unit);
  }
  return "just now";
}

const exactFormat = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
});

/** Date and time to the second, in the reader's time zone. */
export function exact(at: number): string {
  return exactFormat.format(at);
}

const countFormat = new Intl.NumberFormat("en");

/** 12,000. */
export function count(number: number): string {
  return countFormat.format(number);
}
