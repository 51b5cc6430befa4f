//! Durations as people write them: 90s, 15m, 1h, 7d.

use std::time::Duration;

/// A whole number and its unit.
///
/// # Errors
/// What it should look like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is no duration; write 90s, 15m, 1h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 24 * 3_600,
        _ => return Err(expected()),
    };
    let seconds = number.checked_mul(unit).filter(|s| (1..=10 * 365 * 24 * 3_600).contains(s));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is out of range; 1s to 10 years are possible"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "1", "h", "1w", "-1s", "0s", "1.5h", "99999999999999999999s", "9999999999d", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
