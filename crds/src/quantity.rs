//! Kubernetes quantities (`64Mi`, `500m`, `1e3`) as numbers.
//!
//! [`ByteSize`] is a field type that is parsed once, when the object is read. Resource lists stay Kubernetes' own
//! `Quantity`, because they are copied into pods verbatim; [`millicores`] and [`bytes`] read them.
//! Fractions round up, as Kubernetes does.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the API server accepts for a [`ByteSize`]: a non-negative quantity of bytes.
const PATTERN: &str = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[munkMGTPE]|[eE][+-]?[0-9]+)?$";

/// Binary suffixes in the order in which a canonical form is sought.
const BINARY: [(&str, u64); 6] =
    [("Ei", 1 << 60), ("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// A number of bytes, written as a Kubernetes quantity such as `64Mi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is not a usable quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a Kubernetes quantity.
    #[error(
        "{0:?} is not a quantity; write a number with an optional suffix, such as 500m, 2, 64Mi or 1.5Gi"
    )]
    Syntax(String),
    /// A quantity below zero.
    #[error("quantity {0:?} is negative")]
    Negative(String),
    /// More than 63 bits hold.
    #[error("quantity {0:?} is too large")]
    TooLarge(String),
}

impl ByteSize {
    /// A size of so many mebibytes.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// The bytes a quantity such as `64Mi` stands for.
///
/// # Errors
/// When it is no quantity, negative, or does not fit 63 bits.
pub fn bytes(quantity: &Quantity) -> Result<u64, QuantityError> {
    parse(&quantity.0, 0)
}

/// The thousandths of a CPU core a quantity such as `500m` or `2` stands for.
///
/// # Errors
/// When it is no quantity, negative, or does not fit 63 bits.
pub fn millicores(quantity: &Quantity) -> Result<u64, QuantityError> {
    parse(&quantity.0, 3)
}

/// Value of `text` times 10^`scale`, rounded up. Exact: floating point would make 0.1 something else.
fn parse(text: &str, scale: i32) -> Result<u64, QuantityError> {
    let syntax = || QuantityError::Syntax(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    if text.starts_with('-') {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = unsigned.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Longer numbers than this cannot be in range, and u128 arithmetic below must not overflow.
    if number.len() > 32 {
        return Err(too_large());
    }
    let digits: String = [whole, fraction].concat();
    if digits.is_empty() || fraction.contains('.') {
        return Err(syntax());
    }
    let mantissa: u128 = digits.parse().map_err(|_not_a_number| syntax())?;
    let (binary, exponent) = suffix_factor(suffix).ok_or_else(syntax)?;
    let fraction_len = i32::try_from(fraction.len()).map_err(|_too_long| too_large())?;
    let exponent = exponent + scale - fraction_len;

    let value = mantissa.checked_mul(u128::from(binary)).ok_or_else(too_large)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent >= 0, power) {
        (_, _) if value == 0 => 0,
        (true, Some(power)) => value.checked_mul(power).ok_or_else(too_large)?,
        (true, None) => return Err(too_large()),
        (false, Some(power)) => value.div_ceil(power),
        (false, None) => 1,
    };
    u64::try_from(value).ok().filter(|value| i64::try_from(*value).is_ok()).ok_or_else(too_large)
}

/// Binary factor and decimal exponent of a suffix.
fn suffix_factor(suffix: &str) -> Option<(u64, i32)> {
    if let Some((_, factor)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((*factor, 0));
    }
    let exponent = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            // Beyond this every value is either zero or out of range; it keeps the sum of exponents in an i32.
            digits.parse::<i32>().ok().filter(|exponent| exponent.unsigned_abs() <= 1000)?
        }
    };
    Some((1, exponent))
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text, 0).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = BINARY.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match suffix {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<ByteSize> for Quantity {
    fn from(size: ByteSize) -> Self {
        Self(size.to_string())
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Quantity::deserialize(deserializer)?.0.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantity(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn reads_bytes_and_millicores_like_kubernetes() {
        let cases = [
            ("64Mi", 67_108_864),
            ("1.5Gi", 1_610_612_736),
            ("128k", 128_000),
            ("1e3", 1000),
            ("2E", 2_000_000_000_000_000_000),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(&quantity(text)), Ok(expected), "{text}");
        }
        assert_eq!(
            bytes(&quantity("1E")),
            Ok(1_000_000_000_000_000_000),
            "E without digits is exa, not an exponent"
        );
        assert_eq!(bytes(&quantity("100m")), Ok(1), "a part of a byte rounds up");
        assert_eq!(bytes(&quantity("1e-900")), Ok(1));
        for (text, expected) in
            [("100m", 100), ("2", 2000), ("0.1", 100), (".5", 500), ("1.", 1000), ("1u", 1), ("0", 0)]
        {
            assert_eq!(millicores(&quantity(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for bad in ["", "Mi", "1.2.3", "1 Gi", "1gi", "0x10", ".", "1e", "1e1.5", "e3", "1mi"] {
            assert_eq!(bytes(&quantity(bad)), Err(QuantityError::Syntax(bad.to_owned())));
        }
        assert_eq!(bytes(&quantity("-1")), Err(QuantityError::Negative("-1".to_owned())));
        for large in ["8Ei", "10E", "1e30", "1e999", "99999999999999999999999999999999999999999"] {
            assert_eq!(bytes(&quantity(large)), Err(QuantityError::TooLarge(large.to_owned())));
        }
    }

    #[test]
    fn a_byte_size_may_be_written_as_number_or_string() {
        assert_eq!(serde_json::from_str::<ByteSize>("1048576").unwrap(), ByteSize::from_mib(1));
        assert_eq!(serde_json::from_str::<ByteSize>("\"1Mi\"").unwrap(), ByteSize::from_mib(1));
        assert_eq!(serde_json::to_value(ByteSize::from_mib(64)).unwrap(), "64Mi");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_round_trip(bytes in 0..=i64::MAX.cast_unsigned()) {
            let size = ByteSize(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn parsing_any_text_never_panics(text in "[+-]?[0-9.]{0,40}[a-zA-Z]{0,2}[+-]?[0-9]{0,12}") {
            if let Ok(size) = text.parse::<ByteSize>() {
                prop_assert!(i64::try_from(size.bytes()).is_ok());
            }
        }
    }
}
