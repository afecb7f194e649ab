//! The datapath: packets between the pod's TUN, its peers and its services.
#![cfg_attr(not(test), allow(dead_code))]

mod checksum;
mod coalesce;
mod packet;
mod pipeline;
mod policy;
mod refuse;
mod segment;
mod services;
mod vnet;
