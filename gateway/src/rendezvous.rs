//! Which logic serves a user, when several are attached: highest random weight (Thaler and Ravishankar, 1998), so that
//! losing one moves only its own users.

/// The index of the user's logic among those that are up.
#[must_use]
pub fn choose(user: &str, up: &[bool]) -> Option<u8> {
    let indices =
        up.iter().enumerate().filter(|(_, up)| **up).filter_map(|(index, _)| u8::try_from(index).ok());
    indices.max_by_key(|index| weight(user, *index))
}

/// FNV-1a over the user and the index, then the finalizer of SplitMix64 so that close inputs part.
fn weight(user: &str, index: u8) -> u64 {
    let fnv = user.bytes().chain([0xff, index]).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn losing_one_moves_only_its_users(user in "[a-z0-9]{1,20}", lost in 0usize..5) {
            let all = choose(&user, &[true; 5]).map(usize::from);
            let mut up = [true; 5];
            up[lost] = false;
            let without = choose(&user, &up).map(usize::from);
            prop_assert!(all == without || all == Some(lost));
            prop_assert_ne!(without, Some(lost));
        }
    }

    #[test]
    fn users_spread_and_nobody_is_served_by_nothing() {
        let mut counts = [0; 4];
        for user in 0..4_000 {
            counts[usize::from(choose(&format!("user-{user}"), &[true; 4]).expect("some are up"))] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
        assert_eq!(choose("a", &[]), None);
        assert_eq!(choose("a", &[false, true]), Some(1));
    }
}
