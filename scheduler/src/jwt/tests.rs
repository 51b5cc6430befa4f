//! Tokens of three algorithms, made by openssl and by us, and everything that must not pass.

use std::time::Duration;

use super::{watch::JwksFile, *};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: i64 = 1_795_000_000_000;

/// Made with openssl 3: the modulus of a 2048-bit key, and a token {"sub":"alice","exp":2000000000} signed with it.
const RSA_N: &str = "xNLpxNhdSHiTqP5_zpgT2v6Pl5s9Rv4r2r4tk4zSfzOOwu6BfIBBjQwIIzooHW79xw7RKEwl16AtDAeUu4cuxaP-RjPEjUDyoTsqwujg-dAhEKM_8ISjBea0_PFvQl8QGiyqczpT2kB1jnxhPm5_aiI9NxcTF2yaCzDp5yLfTHkh4U42AIoFhVOVxKSIM7f9ln1QsGex86tY6TEuw6DXTY7AZiJiQ4GZtTSsdCdTkFtuYYavRLV5Ctah4frIBTJ60T1iQNgFXXYnipUm_aaQwmhALj0L42bK1sIGiZQvuCwEzgoSJKBbX5mDwnhnK7sOFupG0GxlWFTqo4fyRTYzww";
const RSA_TOKEN: &str = "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInIxIn0.eyJzdWIiOiAiYWxpY2UiLCAiZXhwIjogMjAwMDAwMDAwMH0.VGduSIZ2ixuzjrUpsSmoqTYXE4L_udO_X-yf6cjK-GM-cEXf9Iju8-FL-L2L3IaCizXDYx80fipNwsWGijjRD85BipSuXhSxmgo4VY8e63Hg5W5r_s8oYeSLMzMI6SeMe-SHJs2Y0HILV5LV1jBlkD1uMTonDhtEG6Pr27I4Pixi8EEur2JbbK6mTUJrHKm31HT2HZYSDmScE5tMtPeT959cNphSZ2EOsUNN56L3xT8_dt3OQWP8t3E5dmTxz7BRoukke_X7M4tcSJOhP1BVqbtck_fTv3CFeJIpRw73SG8A7Loel5tVTxWP54888hfH1-wIA_-lkTfUisdHF06s4Q";
/// The same with an Ed25519 key.
const ED_X: &str = "DamIoa0m4su0g9-4KA60IB0TtZUMLkaQg27J7hJ79rA";
const ED_TOKEN: &str = "eyJhbGciOiAiRWREU0EiLCAia2lkIjogImUxIn0.eyJzdWIiOiAiYWxpY2UiLCAiZXhwIjogMjAwMDAwMDAwMH0.pB2ChqTn4V2AYFkYNCL3Tg-criqOdobsWbNrLhmr6yookb9pUF8xONPzJNvMtopngqJzo_QZ6otIdvysz_Q6CA";

fn secret_keys() -> JwtKeys {
    JwtKeys::from_secrets(&[SECRET]).expect("32 bytes")
}

fn jwks() -> JwtKeys {
    let text = format!(
        r#"{{"keys":[
            {{"kty":"EC","crv":"P-256","kid":"ec","x":"AA","y":"AA"}},
            {{"kty":"RSA","kid":"enc","use":"enc","n":"AA","e":"AQAB"}},
            {{"kty":"RSA","kid":"r1","alg":"RS256","use":"sig","n":"{RSA_N}","e":"AQAB"}},
            {{"kty":"OKP","crv":"Ed25519","kid":"e1","x":"{ED_X}"}}]}}"#
    );
    JwtKeys::from_jwks(&text).expect("two usable keys")
}

/// A token with our secret over any header and claims.
fn forge(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn claims(claims: &str) -> Result<User, JwtError> {
    secret_keys().verify(&forge(r#"{"alg":"HS256"}"#, claims), NOW)
}

#[test]
fn our_own_tokens_pass_until_they_expire() {
    let token = sign_user_token(SECRET, "alice", Duration::from_secs(60), NOW + 999);
    let user =
        User { id: "alice".to_owned(), expires_at_ms: NOW + 60_000, issued_at_ms: NOW, device_id: None };
    assert_eq!(secret_keys().verify(&token, NOW), Ok(user.clone()));
    assert_eq!(secret_keys().verify(&token, NOW + 59_999), Ok(user));
    assert_eq!(secret_keys().verify(&token, NOW + 60_001), Err(JwtError::Expired { late_ms: 1 }));
}

#[test]
fn where_an_audience_or_an_issuer_is_expected_tokens_for_others_and_of_others_are_refused() {
    let audience = || JwtExpected { audience: "chat".to_owned(), ..JwtExpected::default() };
    let issuer = || JwtExpected { issuer: "https://id".to_owned(), ..JwtExpected::default() };
    for (expected, says, passes) in [
        (JwtExpected::default(), r#""aud":["other"],"iss":7"#, true),
        (audience(), r#""aud":"chat""#, true),
        (audience(), r#""aud":["other","chat"],"iss":"anybody""#, true),
        (audience(), r#""aud":"Chat""#, false),
        (audience(), r#""aud":["other"]"#, false),
        (audience(), r#""aud":[]"#, false),
        (audience(), r#""aud":7"#, false),
        (audience(), r#""iss":"chat""#, false),
        (issuer(), r#""iss":"https://id""#, true),
        (issuer(), r#""iss":"https://id/""#, false),
        (issuer(), r#""iss":["https://id"]"#, false),
        (issuer(), r#""aud":"https://id""#, false),
    ] {
        let token = forge(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"alice","exp":2000000000,{says}}}"#));
        let verified = secret_keys().verify_expected(&token, &expected, NOW);
        assert_eq!(verified.is_ok(), passes, "{expected:?} {says}: {verified:?}");
    }
    let both = JwtExpected { issuer: "https://id".to_owned(), ..audience() };
    let own = sign_expected_token(SECRET, &both, "alice", Duration::from_secs(60), NOW);
    assert!(secret_keys().verify_expected(&own, &both, NOW).is_ok());
    let bare = sign_user_token(SECRET, "alice", Duration::from_secs(60), NOW);
    let refused = secret_keys().verify_expected(&bare, &both, NOW).err().map(|error| error.to_string());
    assert!(refused.is_some_and(|text| text.contains("auth.jwt_audience")));
}

#[test]
fn tokens_of_a_jwks_pass() {
    for token in [RSA_TOKEN, ED_TOKEN] {
        let user = jwks().verify(token, NOW).expect("signed by openssl");
        assert_eq!((user.id.as_str(), user.expires_at_ms), ("alice", 2_000_000_000_000));
        assert_eq!((user.issued_at_ms, user.device_id), (0, None));
    }
}

#[test]
fn the_algorithm_is_the_key_s_not_the_token_s() {
    let good = r#"{"sub":"alice","exp":2000000000}"#;
    for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS512"}"#, r#"{"alg":"EdDSA"}"#, r#"{"alg":"hs256"}"#] {
        assert_eq!(secret_keys().verify(&forge(header, good), NOW), Err(JwtError::UnknownKey), "{header}");
    }
    // The classic: an HS256 token whose secret is the public key.
    let hs256 = forge(r#"{"alg":"HS256","kid":"r1"}"#, good);
    assert_eq!(jwks().verify(&hs256, NOW), Err(JwtError::UnknownKey));
    let bare = format!("{}.", forge(r#"{"alg":"none"}"#, good).rsplit_once('.').expect("three parts").0);
    assert_eq!(secret_keys().verify(&bare, NOW), Err(JwtError::UnknownKey));
    let unsigned = format!("{}.", forge(r#"{"alg":"HS256"}"#, good).rsplit_once('.').expect("three parts").0);
    assert_eq!(secret_keys().verify(&unsigned, NOW), Err(JwtError::Forged));
}

#[test]
fn a_key_id_that_is_not_there_is_unknown() {
    let other_kid = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"r2"}"#),
        RSA_TOKEN.split_once('.').expect("three parts").1
    );
    assert_eq!(jwks().verify(&other_kid, NOW), Err(JwtError::UnknownKey));
}

#[test]
fn no_changed_character_passes() {
    for (keys, token) in [(jwks(), RSA_TOKEN.to_owned()), (jwks(), ED_TOKEN.to_owned()), {
        let own = sign_user_token(SECRET, "alice", Duration::from_secs(60), NOW);
        (secret_keys(), own)
    }] {
        for place in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("still ASCII");
            // The last character of a base64 text has bits that mean nothing; the decoder refuses those that are not 0.
            assert!(keys.verify(&changed, NOW).is_err(), "character {place} of {token:.20}");
        }
    }
}

#[test]
fn claims_must_be_there() {
    let missing = |claim: &str| JwtError::Claim(claim.to_owned());
    assert_eq!(claims(r#"{"exp":2000000000}"#), Err(missing("sub is missing; it is the user id")));
    assert_eq!(claims(r#"{"sub":"alice"}"#), Err(missing("exp is missing; tokens must expire")));
    for bad in [r#"{"sub":"","exp":2e9}"#, r#"{"sub":"a b","exp":2e9}"#] {
        assert!(matches!(claims(bad), Err(JwtError::Claim(_))), "{bad}");
    }
    for malformed in
        [r#"{"sub":7,"exp":2e9}"#, r#"{"sub":"a","exp":"2e9"}"#, "[]", "7", "", r#"{"sub":"a","sub":"b"}"#]
    {
        assert_eq!(claims(malformed), Err(JwtError::Malformed), "{malformed}");
    }
    assert_eq!(claims(r#"{"sub":"system","exp":2e9}"#).expect("genuine").id, "system");
}

#[test]
fn a_token_may_be_of_one_device_only() {
    let of = |device: &str| claims(&format!(r#"{{"sub":"alice","exp":2000000000,"device":{device}}}"#));
    let user = of(r#""phone""#).expect("genuine");
    assert_eq!(user.check_device("phone"), Ok(()));
    assert!(
        user.check_device("laptop")
            .is_err_and(|problem| problem.contains("laptop") && problem.contains("phone"))
    );
    let any = claims(r#"{"sub":"alice","exp":2000000000}"#).expect("genuine");
    assert_eq!(any.check_device("laptop"), Ok(()));
    for bad in ["7", r#""""#, r#""a b""#, r#"{"id":"phone"}"#] {
        assert!(matches!(of(bad), Err(JwtError::Claim(_))), "{bad}");
    }
}

#[test]
fn times_at_their_edges() {
    let at = |exp: &str| claims(&format!(r#"{{"sub":"a","exp":{exp}}}"#));
    assert_eq!(at("1795000000"), Err(JwtError::Expired { late_ms: 0 }));
    assert_eq!(at("1795000000.5").expect("half a second left").expires_at_ms, NOW + 500);
    assert_eq!(at("1e300").expect("for ever").expires_at_ms, i64::MAX);
    assert!(matches!(at("-1e300"), Err(JwtError::Expired { .. })));
    let not_before = |nbf: i64| claims(&format!(r#"{{"sub":"a","exp":2e9,"nbf":{nbf}}}"#));
    assert!(not_before(1_795_000_060).is_ok(), "a minute of skew");
    assert_eq!(not_before(1_795_000_061), Err(JwtError::TooEarly));
}

#[test]
fn rubbish_is_malformed() {
    let critical = forge(r#"{"alg":"HS256","crit":["x"]}"#, r#"{"sub":"a","exp":2e9}"#);
    let long = "A".repeat(MAX_TOKEN + 1);
    for token in ["", ".", "..", "...", "a.b", "a.b.c", "é.é.é", critical.as_str(), long.as_str()] {
        assert_eq!(secret_keys().verify(token, NOW), Err(JwtError::Malformed), "{token:.30}");
    }
}

#[test]
fn keys_that_cannot_be_used_say_why() {
    let why = |text: &str| JwtKeys::from_jwks(text).err().expect("refused").to_string();
    assert_eq!(why(r#"{"keys":[]}"#), "auth.jwks_file: no Ed25519 or RS256 signing key in it");
    assert_eq!(
        why(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}"#),
        "auth.jwks_file: keys[0]: x has 3 bytes; an Ed25519 public key has 32"
    );
    assert!(why(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#).contains("n has 17 bits"));
    assert!(why(r#"{"keys":[{"kty":"RSA","e":"AQAB"}]}"#).ends_with("n is missing"));
    assert!(why("nonsense").starts_with("auth.jwks_file: no JWKS"));
    assert!(matches!(JwtKeys::from_secrets(&[b"short"]), Err(JwtKeysError::ShortSecret(5))));
    let nowhere = JwksFile::load("/no/such/file".into());
    assert!(matches!(nowhere, Err(JwtKeysError::Unreadable { .. })));
}

fn rsa(n: &[u8], e: &[u8]) -> Result<JwtKeys, JwtKeysError> {
    let [n, e] = [n, e].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
    JwtKeys::from_jwks(&format!(r#"{{"keys":[{{"kty":"RSA","n":"{n}","e":"{e}"}}]}}"#))
}

#[test]
fn rsa_keys_that_can_never_verify_are_refused_at_start() {
    let n = URL_SAFE_NO_PAD.decode(RSA_N).expect("base64url");
    let e = [1, 0, 1];
    assert!(rsa(&n, &e).expect("usable").verify(RSA_TOKEN, NOW).is_ok());
    let padded = |bytes: &[u8]| [&[0, 0][..], bytes].concat();
    let same = rsa(&padded(&n), &padded(&e)).expect("the same numbers");
    assert!(same.verify(RSA_TOKEN, NOW).is_ok(), "leading zeros mean nothing");
    let why = |n: &[u8], e: &[u8]| rsa(n, e).err().expect("refused").to_string();
    let even = [&n[..255], &[n[255] & 0xFE][..]].concat();
    let short = [&[n[0] >> 1][..], &n[1..]].concat();
    let long = [&[1][..], &[3; 1024]].concat();
    assert!(why(&even, &e).contains("n is even"));
    assert!(why(&short, &e).contains("n has 2047 bits"));
    assert!(why(&long, &e).contains("n has 8193 bits"));
    assert!(why(&[0; 256], &e).contains("n has 0 bits"));
    for bad in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[2, 0, 0, 0, 1], &[1, 0, 0, 0, 0, 1]] {
        assert!(why(&n, bad).contains("e is no odd number from 3"), "{bad:?}");
    }
    assert!(rsa(&n, &[3]).is_ok() && rsa(&n, &[1, 255, 255, 255, 255]).is_ok());
}

#[test]
fn ed25519_goes_by_both_of_its_names() {
    let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes");
    let x = URL_SAFE_NO_PAD.encode(ring::signature::KeyPair::public_key(&pair).as_ref());
    for (key_alg, token_alg) in [("EdDSA", "Ed25519"), ("Ed25519", "Ed25519"), ("Ed25519", "EdDSA")] {
        let keys = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","alg":"{key_alg}","x":"{x}"}}]}}"#);
        let keys = JwtKeys::from_jwks(&keys).expect("usable");
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{token_alg}"}}"#));
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(r#"{"sub":"alice","exp":2e9}"#));
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes())));
        assert_eq!(
            keys.verify(&token, NOW).map(|user| user.id).as_deref(),
            Ok("alice"),
            "{key_alg} {token_alg}"
        );
    }
}

#[test]
fn a_jwks_file_is_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jwks.json");
    let text = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{ED_X}"}}]}}"#);
    std::fs::write(&path, text).expect("written");
    let (keys, _) = JwksFile::load(path).expect("readable");
    assert!(keys.verify(ED_TOKEN, NOW).is_ok(), "a key without kid fits any");
}

#[test]
fn when_a_token_was_issued_is_told_if_it_can_be() {
    let issued = |iat: &str| {
        let text = format!(r#"{{"sub":"alice","exp":2000000000{iat}}}"#);
        claims(&text).expect("good whatever its iat").issued_at_ms
    };
    assert_eq!(issued(r#","iat":1794999999"#), NOW - 1_000);
    assert_eq!(issued(r#","iat":1794999999.25"#), NOW - 750);
    assert_eq!(issued(r#","iat":1795000060"#), NOW + CLOCK_LEEWAY_MS, "the issuer's clock may be ahead");
    for unbelievable in
        ["", r#","iat":"today""#, r#","iat":-1"#, r#","iat":null"#, r#","iat":1795000061"#, r#","iat":1e300"#]
    {
        assert_eq!(issued(unbelievable), 0, "{unbelievable}");
    }
}
