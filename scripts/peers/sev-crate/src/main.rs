// Reads one launch a line, tab-separated: mode, VMM, firmware, vCPUs, CPU model,
// CPU signature, guest features, kernel, initrd, command line in hexadecimal.
// Absent files are "-". Prints one digest or "error: ..." a line. Modes are snp
// and snp:ovmf-hash: the crate has the others only with OpenSSL.
//
// With arguments instead of lines: the fields of one launch.
use sev::measurement::snp::{calc_snp_ovmf_hash, snp_calc_launch_digest, SnpMeasurementArgs};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::str::FromStr;

type Error = Box<dyn std::error::Error>;

fn file(name: &str) -> Option<PathBuf> {
    (name != "-").then(|| PathBuf::from(name))
}

fn unhex(text: &str) -> Result<Vec<u8>, Error> {
    (0..text.len())
        .step_by(2)
        .map(|i| Ok(u8::from_str_radix(&text[i..i + 2], 16)?))
        .collect()
}

fn digest(f: &[&str]) -> Result<String, Error> {
    let [mode, vmm, ovmf, vcpus, _model, signature, features, kernel, initrd, append] = f else {
        return Err(format!("found {} fields, expected 10", f.len()).into());
    };
    let ovmf_file = PathBuf::from(ovmf);
    let (kernel_file, initrd_file) = (file(kernel), file(initrd));
    let line = String::from_utf8(unhex(append)?)?;
    let append = kernel_file.is_some().then_some(line.as_str());
    let signature: u32 = signature.parse()?;
    let vmm_type = Some(VMMType::from_str(vmm)?);
    Ok(match *mode {
        "snp:ovmf-hash" => format!("{:x}", calc_snp_ovmf_hash(ovmf_file)?),
        "snp" => format!(
            "{:x}",
            snp_calc_launch_digest(SnpMeasurementArgs {
                vcpus: vcpus.parse()?,
                vcpu_type: CpuType::try_from(signature as i32)?,
                ovmf_file,
                guest_features: GuestFeatures(features.parse()?),
                kernel_file,
                initrd_file,
                append,
                ovmf_hash_str: None,
                vmm_type,
            })?
        ),
        other => return Err(format!("mode {other}").into()),
    })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    std::panic::set_hook(Box::new(|_| {}));
    let out = std::io::stdout();
    let mut out = out.lock();
    let mut answer = |fields: &[&str]| {
        // The crate panics at some images: that is its answer.
        let text = match std::panic::catch_unwind(|| digest(fields).map_err(|e| e.to_string())) {
            Ok(Ok(d)) => d.trim_start_matches("0x").to_string(),
            Ok(Err(e)) => format!("error: {e}").replace('\n', " "),
            Err(_) => "error: panic".to_string(),
        };
        writeln!(out, "{text}").expect("standard output");
    };
    if !args.is_empty() {
        answer(&args.iter().map(String::as_str).collect::<Vec<_>>());
        return;
    }
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input");
        answer(&line.split('\t').collect::<Vec<_>>());
    }
}
