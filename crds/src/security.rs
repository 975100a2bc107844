//! Keys of a `LedgerCluster`, by reference, and what is encrypted with them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ledger_cluster::rule;
use crate::{SecretKeyRef, schema};

/// Keys, by reference to Secrets in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("!has(self.decryptApiKeySecretRef) || has(self.apiKeySecretRef)", DECRYPT_NEEDS_KEY)
        .field_path(".decryptApiKeySecretRef"),
    rule("has(self.encryptedFields) == has(self.encryptionKeySecretRef)", FIELDS_AND_KEY)
        .field_path(".encryptedFields"),
    rule(
        "!has(self.encryptedFields) || !self.encryptedFields.exists(f, f.matches('^/(type|timestamp|case_id)(/|$)'))",
        PLAIN_FIELDS,
    )
    .field_path(".encryptedFields"),
    rule(
        "!has(self.encryptedFields) || \
         self.encryptedFields.all(f, self.encryptedFields.exists_one(g, (f + '/').startsWith(g + '/')))",
        COVERED_FIELDS,
    )
    .field_path(".encryptedFields"),
]))]
pub struct Security {
    /// The API key that every request must carry. Default: on Kubernetes one that the operator generates, in the Secret
    /// `NAME-api-key`; on one machine none, and pods listen on the loopback address alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// A second API key. Requests that carry it may do everything that the first one allows, and read encrypted fields
    /// decrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decrypt_api_key_secret_ref: Option<SecretKeyRef>,
    /// The keys for field-level encryption: each 32 bytes in base64, separated by commas or lines. The first one encrypts,
    /// all of them decrypt. Needs `encryptedFields`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_secret_ref: Option<SecretKeyRef>,
    /// Members of events whose values are stored encrypted, as JSON pointers such as `/card/number`; in place of an array's
    /// elements the array. An empty list encrypts nothing and still decrypts what is stored. Needs
    /// `encryptionKeySecretRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = r"^(/([^~/]|~[01])*){1,16}$"))
    )]
    pub encrypted_fields: Option<Vec<String>>,
    /// The private keys that sign checkpoints: one or more lines `PRIVATE+KEY+name+hash+base64`, all of one name, which is the
    /// log's origin. Default: key `signing-key` of Secret `NAME-signing-key`, which the operator makes once, with the origin
    /// `certeus.io/NAMESPACE/NAME`. Keep a copy of it: it stays when the cluster is deleted, and a log continues under its
    /// own key alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_key_secret_ref: Option<SecretKeyRef>,
    /// Credentials for `log.anchor` and `retention.archive`: a Secret with the keys `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`, and if need be `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT` and `AWS_ALLOW_HTTP`.
    /// Default: what the node or the service account grants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_store_secret_ref: Option<SecretRef>,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = SECRET_NAME_PATTERN))]
    pub name: String,
}

/// The same language as [`is_secret_name`]: labels as in a host's name.
const SECRET_NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";

pub(crate) fn is_secret_name(text: &str) -> bool {
    let in_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(in_label) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.split('.').all(is_label)
}

impl SecretRef {
    pub(crate) fn check(&self, path: &str, refuse: &mut impl FnMut(bool, &str, &str)) {
        let malformed = !self.name.is_empty() && !is_secret_name(&self.name);
        refuse(
            malformed,
            path,
            "must be a name of lower-case letters, digits, dashes and dots, such as my-secret",
        );
    }
}

const DECRYPT_NEEDS_KEY: &str =
    "decryptApiKeySecretRef needs apiKeySecretRef: without it every caller may read what is decrypted";
const FIELDS_AND_KEY: &str = "encryptedFields and encryptionKeySecretRef need each other; an empty list of fields encrypts nothing and \
     still decrypts what is stored";
const PLAIN_FIELDS: &str = "type, timestamp and case_id cannot be encrypted: the ledger finds events by them";
const COVERED_FIELDS: &str = "a field is listed that another one contains or repeats; leave it out";

/// What the pattern of `encryptedFields` says (RFC 6901; the pod takes 16 segments).
fn is_member_pointer(text: &str) -> bool {
    let escapes_end = |segment: &str| segment.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.strip_prefix('/')
        .is_some_and(|path| path.split('/').count() <= 16 && path.split('/').all(escapes_end))
}

impl Security {
    pub(crate) fn check_relations(&self, refuse: &mut impl FnMut(bool, &str, &str)) {
        let without_key = self.decrypt_api_key_secret_ref.is_some() && self.api_key_secret_ref.is_none();
        refuse(without_key, "spec.security.decryptApiKeySecretRef", DECRYPT_NEEDS_KEY);
        let fields_path = "spec.security.encryptedFields";
        let one_alone = self.encrypted_fields.is_some() != self.encryption_key_secret_ref.is_some();
        refuse(one_alone, fields_path, FIELDS_AND_KEY);
        let pointers = self.encrypted_fields.iter().flatten().enumerate();
        for (index, pointer) in pointers.filter(|(_, pointer)| !is_member_pointer(pointer)) {
            let problem =
                format!("must be a JSON pointer to a member, such as /card/number, not {pointer:?}");
            refuse(true, &schema::element_path(fields_path, index), &problem);
        }
        let fields: Vec<String> =
            self.encrypted_fields.iter().flatten().map(|field| format!("{field}/")).collect();
        let plain = |field: &String| {
            ["/type/", "/timestamp/", "/case_id/"].iter().any(|reserved| field.starts_with(reserved))
        };
        refuse(fields.iter().any(plain), fields_path, PLAIN_FIELDS);
        // Each field is within itself, and must be within no other.
        let covered = |field: &String| fields.iter().filter(|other| field.starts_with(*other)).count() > 1;
        refuse(fields.iter().any(covered), fields_path, COVERED_FIELDS);
        if let Some(secret) = &self.object_store_secret_ref {
            secret.check("spec.security.objectStoreSecretRef.name", refuse);
        }
    }
}
