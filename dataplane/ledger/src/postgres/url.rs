//! Connection URLs as libpq's users write them, read by a parser that knows fewer parameters.
//!
//! Owns what becomes of the others: `sslmode=verify-full` in a URL is what `require` means here; what has no counterpart is
//! refused by its name. Never repeats a part of the URL, which holds a password: names come from the table below alone.

use std::borrow::Cow;

use tokio_postgres::Config;

use super::ConfigError;

/// Parameters of libpq's that the parser does not know, or not with every value, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    (
        "sslmode",
        "it must be disable, prefer, require or, in a URL, verify-full, which is the same as require",
    ),
    ("sslrootcert", "give the certificates themselves in CERTEUS_DB_CA (spec.database.caSecretRef)"),
    ("sslcert", "client certificates are not supported: use a password"),
    ("sslkey", "client certificates are not supported: use a password"),
    ("sslpassword", "client certificates are not supported: use a password"),
    ("sslcertmode", "client certificates are not supported: leave it out"),
    ("sslcrl", "revocation lists are not supported: leave it out"),
    ("sslcrldir", "revocation lists are not supported: leave it out"),
    ("gssencmode", "GSSAPI is not supported: leave it out"),
    ("krbsrvname", "GSSAPI is not supported: use a password"),
    ("passfile", "write the password into the URL"),
    ("service", "write what the service stands for into the URL"),
];

/// Reads a URL, or parameters in the form `host=... user=...`.
pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    let text = with_known_modes(text);
    text.parse().map_err(|source| match parameters(&text).find_map(refused) {
        Some((parameter, instead)) => ConfigError::Parameter { parameter, instead },
        None => ConfigError::Url(source),
    })
}

/// The place behind the question mark of a URL. As the parser has it: what stands before the first `@` are user and password.
fn query_start(text: &str) -> Option<usize> {
    let scheme = ["postgres://", "postgresql://"].into_iter().find(|scheme| text.starts_with(scheme))?;
    let host = text.find('@').unwrap_or(scheme.len());
    text[host..].find('?').map(|mark| host + mark + 1)
}

fn with_known_modes(text: &str) -> Cow<'_, str> {
    let Some((url, query)) = query_start(text).map(|start| text.split_at(start)) else {
        return Cow::Borrowed(text);
    };
    let known = |parameter| if parameter == "sslmode=verify-full" { "sslmode=require" } else { parameter };
    let query: Vec<&str> = query.split('&').map(known).collect();
    Cow::Owned(format!("{url}{}", query.join("&")))
}

fn refused((name, value): (&str, &str)) -> Option<(&'static str, &'static str)> {
    let mode = name == "sslmode" && ["disable", "prefer", "require"].contains(&value);
    REFUSED.iter().find(|(parameter, _)| *parameter == name && !mode).copied()
}

fn parameters(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = query_start(text).map(|start| &text[start..]);
    let separated = query.unwrap_or(text).split(move |c: char| query.map_or(c.is_whitespace(), |_| c == '&'));
    separated.filter_map(|parameter| parameter.split_once('='))
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::SslMode;

    use super::*;

    #[test]
    fn the_modes_of_a_url_are_those_of_libpq_that_mean_something_here() {
        let check = |query: &str, mode| {
            for url in [format!("postgres://u:p?a@h/d{query}"), format!("postgresql://h{query}")] {
                assert_eq!(parse(&url).unwrap().get_ssl_mode(), mode, "{url}");
            }
        };
        check("", SslMode::Prefer);
        check("?sslmode=disable", SslMode::Disable);
        check("?sslmode=require", SslMode::Require);
        check("?sslmode=verify-full", SslMode::Require);
        check("?application_name=x&sslmode=verify-full&connect_timeout=3", SslMode::Require);
        let untouched = parse("postgres://u:?sslmode=verify-full&x@h/d").unwrap();
        assert_eq!(untouched.get_password().unwrap(), b"?sslmode=verify-full&x");
    }

    #[test]
    fn what_is_refused_is_named_and_nothing_else_of_the_url_is() {
        let check = |url: &str, parameter: Option<&str>| {
            let error = parse(url).unwrap_err();
            let told = match &error {
                ConfigError::Parameter { parameter, .. } => Some(*parameter),
                _ => None,
            };
            assert_eq!(told, parameter, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        };
        check("postgres://u:secret@h/d?sslmode=verify-ca", Some("sslmode"));
        check("postgres://u:secret@h/d?sslmode=allow", Some("sslmode"));
        check("postgres://u:secret@h/d?sslmode=require&sslrootcert=/secret/ca.crt", Some("sslrootcert"));
        check("postgres://u:secret@h/d?sslrootcert=system", Some("sslrootcert"));
        check("host=h user=u password=secret sslmode=verify-full", Some("sslmode"));
        check("host=h sslcert=c password=secret", Some("sslcert"));
        check("postgres://u:secret@h:port/d", None);
        check("postgres://u:p@sec?secret=1@h/d", None);
    }
}
