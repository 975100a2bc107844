//! Prints how the product's defaults, the HPA's and KEDA's fare under the same loads:
//! `cargo run -p certeus-autoscale --example simulate [SEED]`.

mod plant;
mod race;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seed = match std::env::args().nth(1) {
        Some(seed) => seed.parse()?,
        None => 1,
    };
    print!("{}", race::table(seed)?);
    Ok(())
}
